"""The precisions that a run may compute in, by Accelerate's names."""

import torch

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
