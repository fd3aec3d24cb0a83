"""The search for each contender's best size and learning rate, in short trials."""

from collections.abc import Iterable, Mapping

from benchmarks.quality.race_setup import Race, score_or_infinity
from benchmarks.quality.trial_runner import Result

Best = dict[str, tuple[str, float]]  # size and learning rate of each contender


def find_best(race: Race, rates: list[float], seed: int, minutes: float, widen: bool) -> Best:
    """The size and learning rate with the best validation score of each contender, in short trials.

    Args:
        rates: learning rates to try first.
        minutes: training time of each trial.
        widen: try further learning rates while a contender's best one is the lowest or the highest of its size.
    """
    contenders = list(dict.fromkeys(contender for contender, _ in race.entries))
    tried = {(contender, size, rate) for contender, size in race.entries for rate in rates}
    while True:
        planned = {}
        for contender, size, rate in sorted(tried):
            planned[contender, size, rate] = race.plan_trial((contender, size), rate, seed, minutes, final=False)
        results = race.run_trials(planned)
        scores = {key: score_or_infinity(result["validation"]) for key, result in results.items()}

        best = best_of_each(contenders, scores)
        further = rates_beyond(best, tried) if widen else set()
        if not further:
            return best
        tried |= further


def train_best(race: Race, best: Best, minutes: float, seeds: list[int]) -> dict[str, list[Result]]:
    """The results of each contender at its best size and learning rate, trained for some minutes: one for each seed."""
    planned = {}
    for contender, (size, rate) in best.items():
        for seed in seeds:
            planned[contender, seed] = race.plan_trial((contender, size), rate, seed, minutes, final=True)
    results = race.run_trials(planned)
    return {contender: [results[contender, seed] for seed in seeds] for contender in best}


def best_of_each(contenders: Iterable[str], scores: Mapping[tuple[str, str, float], float]) -> Best:
    """The size and learning rate of each contender with the lowest score, in the order of `contenders`."""
    best: Best = {}
    for contender in contenders:
        own_scores = {(size, rate): score for (name, size, rate), score in scores.items() if name == contender}
        best[contender] = min(own_scores, key=own_scores.__getitem__)
    return best


def rates_beyond(best: Best, tried: set[tuple[str, str, float]]) -> set[tuple[str, str, float]]:
    """What to try next: half or twice a best learning rate that is the lowest or the highest one tried of its size."""
    further = set()
    for contender, (size, rate) in best.items():
        rates = [r for c, s, r in tried if (c, s) == (contender, size)]
        if rate == max(rates):
            further.add((contender, size, 2 * rate))
        if rate == min(rates):
            further.add((contender, size, rate / 2))
    return further
