"""Train the example click model and export it to ONNX.

The script draws a synthetic click log with planted structure, trains a DCNv2-style network on
it next to a first-order baseline, exports the network with PyTorch's TorchScript exporter, and
writes the evaluation and calibration rows.  See README.md in this folder.

    python train.py --out .
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

# Vocabulary sizes, in the order of the columns of `ids`.
FIELDS = {
    "user": 20_000, "item": 8_000, "seller": 3_000, "city": 1_000, "brand": 400,
    "category": 120, "device": 60, "hour": 24, "channel": 12, "weekday": 7,
}  # fmt: skip
DENSE = 5
HISTORY = 10  # longest history; shorter ones are padded with id 0, so items start at id 1
EMBED = 8
LATENT = 3  # rank of the planted interactions
PAIRS = [
    ("brand", "city"), ("category", "device"), ("category", "hour"), ("brand", "channel"),
    ("item", "device"), ("seller", "weekday"), ("user", "category"),
]  # fmt: skip
EVAL_ROWS, CALIB_ROWS = 4_000, 1_000

Array = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """A slice of the click log; `truth` is the click probability the label was drawn from."""

    ids: Array
    dense: Array
    history: Array
    label: Array
    truth: Array

    def __getitem__(self, rows: slice) -> Rows:
        return Rows(*(column[rows] for column in vars(self).values()))

    def inputs(self) -> dict[str, Array]:
        """Return the model's inputs by the names they have in the exported graph."""
        return {"ids": self.ids, "dense": self.dense, "history": self.history}

    def tensors(self) -> list[Tensor]:
        """Return the model's inputs as tensors, in the order `forward` takes them."""
        return [torch.from_numpy(column) for column in self.inputs().values()]


def zipf(rng: np.random.Generator, vocab: int, shape: tuple[int, ...]) -> Array:
    """Draw ids whose frequency falls with their rank, as in a vocabulary sorted by count."""
    weight = 1.0 / (np.arange(vocab) + 3.0) ** 1.1
    return np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(shape)).astype(np.int64)


def standard(signal: Array) -> Array:
    """Scale a signal to mean 0 and variance 1, so that the mix in `generate` is explicit."""
    return (signal - signal.mean()) / signal.std()


def generate(rows: int, seed: int) -> Rows:
    """Draw a click log: first-order effects, planted interactions, noisy labels."""
    rng = np.random.default_rng(seed)
    # Drawn first, so that the number of rows does not change what there is to learn.
    bias = {name: rng.standard_normal(vocab) for name, vocab in FIELDS.items()}
    factor = {name: rng.standard_normal((vocab, LATENT)) for name, vocab in FIELDS.items()}
    slope = rng.standard_normal(DENSE)

    column = {name: zipf(rng, vocab, (rows,)) for name, vocab in FIELDS.items()}
    column["item"] = np.maximum(column["item"], 1)
    dense = rng.standard_normal((rows, DENSE)).astype(np.float32)
    length = rng.integers(1, HISTORY + 1, rows)
    real = np.arange(HISTORY) < length[:, None]
    history = np.where(real, np.maximum(zipf(rng, FIELDS["item"], real.shape), 1), 0)

    latent = {name: factor[name][ids] for name, ids in column.items()}
    taste = (factor["item"][history] * real[..., None]).sum(1) / length[:, None]

    first = sum(bias[name][ids] for name, ids in column.items()) + dense @ slope
    pairs = sum((latent[left] * latent[right]).sum(1) for left, right in PAIRS)
    interest = (taste * latent["category"]).sum(1)  # what was seen lately, against what is shown
    crosses = dense[:, 0] * dense[:, 1] - dense[:, 2] * np.abs(dense[:, 3])
    by_field = dense[:, 4] * latent["channel"][:, 0]
    logit = -1.5 + 1.2 * standard(first) + 1.6 * standard(pairs) + 0.6 * standard(interest)
    logit += 0.8 * standard(crosses) + 0.6 * standard(by_field)

    truth = 1.0 / (1.0 + np.exp(-logit))
    truth = 0.98 * truth + 0.01  # one click in a hundred is an accident, one is lost
    label = (rng.random(rows) < truth).astype(np.float32)
    return Rows(np.stack(list(column.values()), 1), dense, history, label, truth)


class Features(nn.Module):
    """Embed every input and concatenate: [batch, fields * width + width + DENSE]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(vocab, width) for vocab in FIELDS.values())
        self.bag = nn.EmbeddingBag(FIELDS["item"], width, mode="sum", padding_idx=0)
        for table in [*self.tables, self.bag]:
            nn.init.normal_(table.weight, std=0.05)
        with torch.no_grad():
            self.bag.weight[0] = 0.0
        self.width = width * (len(FIELDS) + 1) + DENSE

    def forward(self, ids: Tensor, dense: Tensor, history: Tensor) -> Tensor:
        embedded = [table(ids[:, column]) for column, table in enumerate(self.tables)]
        length = (history != 0).sum(dim=1, keepdim=True).clamp(min=1)
        return torch.cat([*embedded, self.bag(history) / length, dense], dim=1)


class Linear(nn.Module):
    """First-order logistic regression: one weight per id, no interactions."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Features(1)
        self.head = nn.Linear(self.features.width, 1)

    def forward(self, ids: Tensor, dense: Tensor, history: Tensor) -> Tensor:
        return torch.sigmoid(self.head(self.features(ids, dense, history)))


class CrossLayer(nn.Module):
    """One DCNv2 layer: every output multiplies the network's input once more."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, first: Tensor, hidden: Tensor) -> Tensor:
        return first * self.linear(hidden) + hidden


class ClickModel(nn.Module):
    """DCNv2 with a parallel deep tower."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Features(EMBED)
        width = self.features.width
        self.cross = nn.ModuleList(CrossLayer(width) for _ in range(2))
        self.deep = nn.Sequential(
            nn.Linear(width, 128), nn.BatchNorm1d(128), nn.ReLU(),
            nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(width + 64, 1)

    def forward(self, ids: Tensor, dense: Tensor, history: Tensor) -> Tensor:
        first = crossed = self.features(ids, dense, history)
        for layer in self.cross:
            crossed = layer(first, crossed)
        return torch.sigmoid(self.head(torch.cat([crossed, self.deep(first)], dim=1)))


def fit(model: nn.Module, rows: Rows, epochs: int, rate: float, decay: float) -> None:
    """Minimise the log loss with AdamW, the learning rate falling linearly to zero."""
    inputs, label = rows.tensors(), torch.from_numpy(rows.label)
    batch = 2048
    steps = epochs * (len(label) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(label)).split(batch)[: steps // epochs]:
            score = model(*(column[chosen] for column in inputs)).squeeze(1)
            loss = nn.functional.binary_cross_entropy(score, label[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def predict(model: nn.Module, rows: Rows) -> Array:
    """Return the model's click probabilities, [rows, 1]."""
    with torch.no_grad():
        return model(*rows.tensors()).numpy()


def export(model: ClickModel, rows: Rows, path: Path) -> None:
    """Write the model with a dynamic batch axis and compare ONNX Runtime with PyTorch."""
    # The exporter knows no padding_idx.  The padding row is zero and pooling is a sum, so the
    # bag gives the same result without it.
    model.features.bag.padding_idx = None
    names = list(rows.inputs())
    torch.onnx.export(
        model, tuple(rows[:2].tensors()), str(path), dynamo=False, opset_version=17,
        input_names=names, output_names=["ctr"],
        dynamic_axes={name: {0: "batch"} for name in [*names, "ctr"]},
    )  # fmt: skip
    onnx.checker.check_model(str(path), full_check=True)
    ort.set_default_logger_severity(3)  # it warns, harmlessly, about names in the bag's loop
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 7, 64, len(rows.label)):
        (score,) = session.run(None, rows[:count].inputs())
        np.testing.assert_allclose(score, predict(model, rows[:count]), atol=1e-5)
    print(f"AUC  exported model      {roc_auc_score(rows.label, score):.4f}")


def main() -> None:
    """Generate, train, export, and report the AUCs on the evaluation rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    parser.add_argument("--rows", type=int, default=600_000, help="training rows")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training rows")
    parser.add_argument("--seed", type=int, default=7, help="seed of the data and the weights")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # keeps sums in one order: a re-run gives the same model

    log = generate(args.rows + EVAL_ROWS + CALIB_ROWS, args.seed)
    held = log[args.rows : args.rows + EVAL_ROWS]
    print(f"click rate               {held.label.mean():.4f}")
    print(f"AUC  true probabilities  {roc_auc_score(held.label, held.truth):.4f}")
    for name, model, rate, decay in (
        ("first-order model", Linear(), 0.004, 0.0),
        ("DCNv2 + deep tower", click := ClickModel(), 0.012, 0.8),
    ):
        start = time.perf_counter()
        fit(model, log[: args.rows], args.epochs, rate, decay)
        auc = roc_auc_score(held.label, predict(model, held))
        print(f"AUC  {name:18s}  {auc:.4f}  ({time.perf_counter() - start:.0f} s)")

    args.out.mkdir(parents=True, exist_ok=True)
    export(click, held, args.out / "model.onnx")
    np.savez_compressed(args.out / "eval.npz", **held.inputs(), label=held.label)
    np.savez_compressed(args.out / "calib.npz", **log[args.rows + EVAL_ROWS :].inputs())


if __name__ == "__main__":
    main()
