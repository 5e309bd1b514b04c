"""What estimating a person's W gives, part by part, and what it costs.

    python benchmarks/personalise.py CHECKPOINT WINDOWS [--split validation] [--people 60] [--tune 30]

Reference = first window of a record with all leads, scored on what follows it in the record's last window,
hidden independent leads. In turn: no reference; the closed-form memory alone, without a network; W with the
memory left out; a lead field of one's own alone, by least squares; W by one pass (0 inner steps), by the
trained number of steps and by twice and four times as many; and the whole network fine-tuned on the reference
(--tune gradient steps, leads hidden at random, W as trained). Prints Markdown: mean r per lead set, the
paired difference from W as trained with a 95 % interval over patients, and milliseconds per person.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from common import interval, parser, patient_draws, read_windows, section, table

import numpy as np
import torch

from ecggen.data.pipeline import read_window_folder
from ecggen.eval.baselines import ridge_solve
from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import LeadSet, given_only, named_sets
from ecggen.eval.metrics import score_leads
from ecggen.eval.personal import half_pairs
from ecggen.eval.result import Array
from ecggen.eval.score import REFERENCE_RIDGE
from ecggen.inference.renderer import Renderer, load
from ecggen.models.objective import make_target, training_loss
from ecggen.training.augmentation import random_leads

SETS = named_sets(["I", "II", "I+II", "I+II+V2", "I+II+V1+V4", "I+II+V1+V2+V4+V5+V6"])
FULL = np.ones(12, dtype=bool)
Render = Callable[[Array, LeadSet], Array]
Method = tuple[str, Render, float]  # name, rendering, milliseconds a person


def by_lead_field(renderer: Renderer, reference: Array, ecg: Array, leads: LeadSet) -> Array:
    """Leads [n, 12, T]: the model's VCG of ecg, no reference, through each person's own lead field, which is
    least squares of all leads of the reference [n, 12, T] on the model's VCG of its given leads."""
    then, now = (
        renderer.render_windows(given_only(x, leads.mask), leads.mask)["vcg"].astype(np.float64)
        for x in (reference, ecg)
    )
    turned = then.transpose(0, 2, 1)
    field = ridge_solve(then @ turned, then @ reference.transpose(0, 2, 1), REFERENCE_RIDGE)
    return np.asarray(field.transpose(0, 2, 1) @ now, dtype=np.float32)


def fine_tuned(renderer: Renderer, reference: Array, state: Array, steps: int, seed: int) -> Renderer:
    """A copy of the model trained on one reference window [12, T], W [S] held."""
    tuned, rng = renderer.clone(), np.random.default_rng(seed)
    model = tuned.model
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=0.0)
    ecg = torch.from_numpy(reference[None].repeat(8, 0))
    held = torch.from_numpy(state[None].repeat(8, 0))
    there = torch.ones(8, 12, dtype=torch.bool)
    model.train()
    for _ in range(steps):
        observed = torch.from_numpy(random_leads(there.numpy(), rng))
        out = model(ecg, observed, state=held)
        loss, _ = training_loss(
            model, out, make_target(model, ecg, there, observed, 0.1), renderer.config.train
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    return tuned


def main() -> None:
    """Score and print."""
    options = parser(__doc__)
    options.add_argument("--people", type=int, default=60)
    options.add_argument("--tune", type=int, default=30)
    args = options.parse_args()
    renderer, folder = load(args.checkpoint, device="cpu"), read_window_folder(args.windows)
    pairs = half_pairs(folder, folder.rows(args.split))
    whole = np.flatnonzero(folder.observed[pairs.reference].all(1) & folder.observed[pairs.test].all(1))
    chosen = whole[:: max(1, len(whole) // args.people)]
    reference = read_windows(folder, pairs.reference[chosen])
    test = read_windows(folder, pairs.test[chosen])
    start = pairs.score_from[chosen]
    draws = patient_draws(folder, pairs.test[chosen])
    trained = renderer.model.updater.steps
    print(section("What does estimating a person's W give, and what does it cost?", sys.argv))
    print(f"{args.split} split, {len(chosen)} records, {len(draws.names)} patients.\n", flush=True)

    def held(state: Array) -> Render:
        return lambda ecg, leads: renderer.render_windows(ecg, leads.mask, state=state)["leads"]

    def estimated(steps: int) -> tuple[Array, float]:
        begin = time.perf_counter()
        states = renderer.states(reference, FULL, steps=steps)
        return states, 1e3 * (time.perf_counter() - begin) / len(reference)

    state, cost = estimated(trained)
    blank = state.copy()
    blank[:, renderer.model.fast.size :] = 0

    methods: list[Method] = [
        (f"W, {trained} steps (as trained)", held(state), cost),
        ("no reference", lambda ecg, leads: renderer.render_windows(ecg, leads.mask)["leads"], 0.0),
        (
            "memory alone, no network",
            lambda ecg, leads: renderer.remembered_windows(ecg, leads.mask, state),
            cost,
        ),
        ("W without its memory", held(blank), cost),
        ("lead field alone", lambda ecg, leads: by_lead_field(renderer, reference, ecg, leads), 0.0),
    ]
    for steps in (0, 2 * trained, 4 * trained):
        states, spent = estimated(steps)
        methods.append((f"W, {steps} steps", held(states), spent))
    if args.tune:
        begin = time.perf_counter()
        tuned = [fine_tuned(renderer, reference[i], state[i], args.tune, i) for i in range(len(reference))]
        spent = 1e3 * (time.perf_counter() - begin) / len(reference)

        def by_tuned(ecg: Array, leads: LeadSet) -> Array:
            parts = [
                one.render_windows(ecg[i : i + 1], leads.mask, state=state[i : i + 1])["leads"]
                for i, one in enumerate(tuned)
            ]
            return np.concatenate(parts)

        methods.append((f"all weights, {args.tune} steps", by_tuned, spent))
    report(methods, test, start, draws)


def report(methods: list[Method], test: Array, start: Array, draws: PatientBootstrap) -> None:
    """One row per method and lead set."""
    rows = []
    for leads in SETS:
        given = given_only(test, leads.mask)
        first = None
        for name, render, cost in methods:
            r = score_leads(test, render(given, leads), leads.headline, start).r
            above = "" if first is None else interval(draws.mean(r - first), signed=True)
            first = r if first is None else first
            rows.append([leads.name, name, interval(draws.mean(r)), above, f"{cost:.0f}"])
    print(table(["given", "what is held", "r", f"r above {methods[0][0]}", "ms a person"], rows))


if __name__ == "__main__":
    main()
