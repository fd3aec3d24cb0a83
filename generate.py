"""Text from a trained model: `python generate.py RUN_DIR --prompt "The " --length 512`.

The same seed gives the same bytes. Samples come one after another, each with its prompt.
"""

from pathlib import Path

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt

from data.text import to_ids, to_text
from model.sampling import check_sampling
from training.config import Parser, user_errors
from training.loading import best_device, load_model


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="generate.py", description=__doc__)
    parser.add_argument("run_dir", type=str, help="a run directory")
    parser.add_argument("--prompt", type=str, required=True, help="text to continue, at least one byte")
    parser.add_argument("--length", type=NonNegativeInt, default=512, help="bytes to add")
    parser.add_argument("--temperature", type=NonNegativeFloat, default=1.0, help="0 = always the likeliest byte")
    parser.add_argument("--top-k", type=PositiveInt | None, help="draw from this many likeliest bytes")
    parser.add_argument("--top-p", type=ClosedUnitInterval | None, help="draw from the likeliest that sum to this")
    parser.add_argument(
        "--min-p", type=ClosedUnitInterval | None, help="draw from those this likely beside the likeliest"
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the draw")
    parser.add_argument("--num-samples", type=PositiveInt, default=1, help="samples of the same prompt")
    parser.add_argument("--no-cache", action="store_true", help="compute everything again for every byte")
    parser.add_argument("--device", type=str, default=best_device(), help="cpu, cuda or mps")
    args = parser.parse_args(argv)

    with user_errors():
        prompt = to_ids(args.prompt).expand(args.num_samples, -1)
        options = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        check_sampling(prompt, args.length, **options)
        model = load_model(Path(args.run_dir), args.device)

    generator = torch.Generator().manual_seed(args.seed)
    new = model.generate(
        prompt.to(args.device), args.length, use_cache=not args.no_cache, generator=generator, **options
    )
    for sample in new:
        print(args.prompt + to_text(sample))


if __name__ == "__main__":
    main()
