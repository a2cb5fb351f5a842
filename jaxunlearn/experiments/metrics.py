"""What is shown of a comparison: one entry a metric, for table, report and docs alike."""

import dataclasses
import math

from jaxunlearn.audit.intervals import Interval

DASH = "–"


@dataclasses.dataclass(frozen=True)
class Metric:
    """One column of a table.

    Attributes:
      key: its name in a :class:`Summary`.
      path: where its value stands in a record, dots between.
      short: its usual short name.
      unit: of the printed number.
      title: the same in words.
      meaning: how to read it.
      group: ``utility``, ``forgetting`` or ``detail``.
      null: where the reference record has what retraining scores: ``scores`` (every model's
        own value), another key (values that compare each model with the others), or "".
      band: whether a gap to those values is judged by a null band.
      shared_pairs: each of those values is a mean over pairs of models, see
        :func:`~jaxunlearn.audit.jsd_null`.
      scale: the printed number is so many times the recorded one.
      decimals: how many are printed; None for three significant digits.
      ratio: the value is Retrain's, of the same seed, divided by the method's own.
    """

    key: str
    path: str
    short: str
    unit: str
    title: str
    meaning: str
    group: str
    null: str = ""
    band: bool = True
    shared_pairs: bool = False
    scale: float = 1.0
    decimals: int | None = None
    ratio: bool = False

    @property
    def heading(self) -> str:
        """Of a column: short name and unit."""
        return f"{self.short} {self.unit}".strip()

    def text(self, value: float, *, like: float | None = None, signed: bool = False) -> str:
        """``value`` as it is printed, with the decimals that ``like`` would have."""
        if not math.isfinite(value):
            return DASH
        value, like = value * self.scale, (value if like is None else like) * self.scale
        decimals = self.decimals
        if decimals is None:
            size = abs(like) if math.isfinite(like) and like else 1.0
            decimals = min(max(2 - math.floor(math.log10(size)), 0), 5)
        text = f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")
        if not any(digit in text for digit in "123456789"):
            text = text.lstrip("+−")  # a zero has no sign
        return text

    def half(self, interval: Interval) -> str:
        """``±`` and half the width of an interval; nothing where it has none."""
        half = (interval.high - interval.low) / 2
        if half <= 1e-9 * abs(interval.estimate) and self.group == "detail":
            return ""  # measured once, not equal by chance
        return f"±{self.text(half, like=interval.estimate)}" if math.isfinite(half) else ""


METRICS = (
    Metric(
        "acc_test", "acc_test", "TA", "%", "Test accuracy",
        "Share of test rows classified rightly: what unlearning must not cost.",
        "utility", "scores", scale=100, decimals=1,
    ),
    Metric(
        "acc_retain", "acc_retain", "RA", "%", "Retain accuracy",
        "The same on the training rows that are kept.",
        "utility", "scores", scale=100, decimals=1,
    ),
    Metric(
        "acc_forget", "acc_forget", "FA", "%", "Forget accuracy",
        "The same on the rows to forget. The aim is Retrain's value, not 0: a retrained model "
        "gets rows right that it never saw.",
        "forgetting", "scores", scale=100, decimals=1,
    ),
    Metric(
        "jsd", "jsd_forget", "JSD", "×10⁻³", "Divergence from Retrain",
        "Jensen-Shannon divergence between the predictions for the forgotten rows and those of "
        "each retrained model, mean, in thousandths of a nat (at most 693). Retrained "
        "models differ from each other too: compare with their band, not with 0.",
        "forgetting", "jsd_null", shared_pairs=True, scale=1000,
    ),
    Metric(
        "mia", "mia.efficacy", "MIA", "%", "Membership attack, efficacy",
        "Share of forgotten rows that a support vector classifier, trained on the confidence in "
        "retained and test rows, takes for unseen. The aim is Retrain's value, not 100.",
        "forgetting", "scores", scale=100, decimals=1,
    ),
    Metric(
        "frm", "frm", "FRM", "", "Forget-Retain-MIA score (ConMU)",
        "exp(−sum of the relative gaps of FA, RA and MIA to the mean of the retrained models). "
        "A retrained model does not score 1 either: compare with its band.",
        "forgetting", "frm_null", decimals=3,
    ),
    Metric(
        "auc", "mia.auc", "AUC", "", "Forgotten against test rows",
        "Probability that the model is surer of a forgotten row than of a test row; .5 if it "
        "treats them alike. Retrain is near .5 for random rows, not for a forgotten class.",
        "forgetting", "scores", decimals=3,
    ),
    Metric(
        "tpr", "mia.tpr_at_1fpr", "TPR@1%", "%", "Forgotten rows found at 1% FPR",
        "Share of forgotten rows recognised by a threshold that mistakes 1% of the test rows: "
        "the worst-off rows. Near 1 if forgotten and test rows are treated alike.",
        "forgetting", "scores", scale=100, decimals=1,
    ),
    Metric(
        "unlearn_s", "unlearn_s", "Unlearn", "s", "Seconds to unlearn",
        "Wall time of the request, compiled already.", "detail",
    ),
    Metric(
        "speedup", "unlearn_s", "Speed-up", "", "Speed-up over Retrain",
        "Retrain's seconds divided by the method's, same seed and machine.", "detail", ratio=True,
    ),
    Metric(
        "grad_speedup", "grads", "Grad. speed-up", "", "Speed-up in sample gradients",
        "Retrain's sample gradients divided by the method's: the same on every machine. "
        "A dash where none were spent.",
        "detail", ratio=True,
    ),
    Metric(
        "compile_s", "compile_s", "Compile", "s", "Seconds to compile",
        "Paid once per shape, and not part of the seconds to unlearn.", "detail",
    ),
    Metric(
        "memory", "peak_mem_bytes", "Memory", "MiB", "Peak memory",
        "Arguments, results and temporaries of the compiled request, as the compiler plans them.",
        "detail", scale=2.0**-20,
    ),
    Metric(
        "param_l2", "param_l2", "L2", "", "Distance between parameters",
        "Euclidean distance to one retrained model that started from the original's initial "
        "parameters. In the last row: models retrained from other initial parameters, which "
        "shows how little a distance says by itself. No band.",
        "detail", "param_l2_null", band=False, decimals=2,
    ),
    Metric(
        "shadow", "mia.shadow_acc", "Shadow", "%", "Membership attack, shadow accuracy",
        "How often the membership attack is right on the rows it was trained on. At 50 it cannot "
        "tell members from non-members, and its efficacy means nothing. No band: it judges the "
        "attack.",
        "detail", "scores", band=False, scale=100, decimals=1,
    ),
)  # fmt: skip
BY_KEY = {metric.key: metric for metric in METRICS}
