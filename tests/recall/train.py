"""Trains the recall model: `PYTHONPATH=tests python -m recall.train`, some minutes on two cores.

Writes `weights.safetensors` next to this file. The look-up is learnt on short documents first.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from recall.model import WEIGHTS, recall_config
from recall.task import PAIR_TOKENS, QUERY, QUESTION_TOKENS, make_document
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from examples.demo_model.model import random_gemma3

PEAK_RATE = 3e-3
BATCH_TOKENS = 4096
IGNORED = -100
# (steps, most pairs, longest document); the last stage's documents are many windows long.
STAGES = ((500, 12, 64), (400, 30, 160), (500, 60, 300), (300, 60, 520))


def main() -> None:
    """Train through all stages and write the weights."""
    parser = argparse.ArgumentParser(description="Train the recall model.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    model = random_gemma3(recall_config(), args.seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98))
    total = sum(stage[0] for stage in STAGES)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total, pct_start=0.05)
    for step, (tokens, labels) in enumerate(batches(rng)):
        logits = model(input_ids=tokens).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == total - 1:
            asked = labels[:, 1:] != IGNORED
            right = (logits.argmax(-1) == labels[:, 1:])[asked].float().mean()
            print(f"step {step:5d}  loss {loss.item():.4f}  tokens right {right:.3f}", flush=True)
    save(model, args.out)


def batches(rng: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (tokens, labels), both (batch, length) int64, stage by stage."""
    for steps, most_pairs, longest in STAGES:
        for _ in range(steps):
            num_pairs = rng.randint(max(2, most_pairs // 2), most_pairs)
            length = rng.randint(1 + num_pairs * PAIR_TOKENS, max(longest, 2 + num_pairs * 4))
            num_questions = min(num_pairs, 16)
            rows = BATCH_TOKENS // (length + num_questions * QUESTION_TOKENS)
            examples = [example(rng, num_pairs, length, num_questions) for _ in range(rows)]
            tokens, labels = (torch.tensor(column) for column in zip(*examples, strict=True))
            yield tokens, labels


def example(
    rng: random.Random, num_pairs: int, length: int, num_questions: int
) -> tuple[list[int], list[int]]:
    """Return a document followed by questions with answers; only answers are labelled."""
    document = make_document(rng, num_pairs, length)
    tokens = list(document.tokens)
    labels = [IGNORED] * len(tokens)
    for key in rng.sample(sorted(document.answers), num_questions):
        tokens += [QUERY, key, *document.answers[key]]
        labels += [IGNORED, IGNORED, *document.answers[key]]
    return tokens, labels


def save(model: torch.nn.Module, path: Path) -> None:
    """Write the parameters once each; the output layer is the embedding."""
    weights = {name: p.detach().to(torch.float32) for name, p in model.named_parameters()}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


if __name__ == "__main__":
    main()
