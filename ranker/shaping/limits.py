"""What an operator sets of traffic shaping, as plain values: `[ranker.shaping]` in the settings has them in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.infra.settings import ShapingSettings
from penstock.ranker.shaping.depth import DepthBounds

ON_A_GPU, ON_A_PROCESSOR = (131, 250, 1_000), (16, 32, 64)


@dataclass(frozen=True, slots=True)
class Limits:
    """Shares are of the engine; times are seconds; queues are bounded by the seconds that serving them at the floor
    takes.
    """

    depths: DepthBounds = field(default_factory=lambda: DepthBounds(*ON_A_GPU))
    lanes: int = 1  # batches at once
    together: int = 4_096  # works a batch, at most
    usual_tokens: float = 16_384.0  # of a batch
    batch_s: float = 0.15  # works share a batch, and go deeper than their floor, up to so long
    delay_s: float = 0.1  # predicted, of interactive works, that the depth is steered to
    use: float = 0.97  # of the engine that depth is chosen to take
    standing_s: float = 0.25  # CoDel's target: above the delay that depth holds, below the shortest deadline
    interval_s: float = 1.0  # CoDel's
    alert_share: float = 0.08  # of the engine, at least, while alerts wait
    late_share: float = 0.02  # of that, for what could not be promised its own deadline
    interactive_s: float = 1.0
    recommendation_s: float = 10.0
    alert_s: float = 600.0
    late_s: float = 30.0
    burst_s: float = 0.5  # of a tenant's fair share, that it may be ahead while others wait
    crowded: float = 0.4  # of a queue's bound, or of the time to a deadline; from there on shares count
    weights: Mapping[str, float] = field(default_factory=dict)  # of tenants; 1 where not named

    def __post_init__(self) -> None:
        for name in (
            "usual_tokens",
            "batch_s",
            "delay_s",
            "interactive_s",
            "recommendation_s",
            "alert_s",
            "late_s",
            "burst_s",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: expected more than 0")
        if self.lanes < 1 or self.together < 1:
            raise ValueError(f"lanes is {self.lanes} and together {self.together}: expected at least 1")
        if not self.delay_s < self.standing_s < self.interval_s:
            raise ValueError(
                f"delay_s {self.delay_s}, standing_s {self.standing_s} and interval_s {self.interval_s}: expected them "
                "to rise, else works are refused before depth has given way"
            )
        if not 0.05 <= self.alert_share <= 0.10:
            raise ValueError(f"alert_share is {self.alert_share}: expected 0.05 to 0.10")
        if not 0 < self.late_share < self.alert_share:
            raise ValueError(f"late_share is {self.late_share}: expected more than 0 and less than alert_share")
        if not (0 < self.use < 1 and 0 < self.crowded <= 1):
            raise ValueError(f"use {self.use} and crowded {self.crowded}: expected between 0 and 1")


def depths_from(settings: ShapingSettings, *, on_a_gpu: bool) -> DepthBounds:
    return DepthBounds(*(settings.depths or (ON_A_GPU if on_a_gpu else ON_A_PROCESSOR)))


def limits_from(settings: ShapingSettings, *, on_a_gpu: bool, lanes: int, usual_tokens: float) -> Limits:
    """The settings as values. `lanes`: batches at once; `usual_tokens`: what the engine takes at once."""
    return Limits(
        depths=depths_from(settings, on_a_gpu=on_a_gpu),
        lanes=lanes,
        usual_tokens=usual_tokens,
        batch_s=settings.batch_ms / 1_000,
        delay_s=settings.delay_ms / 1_000,
        standing_s=settings.standing_ms / 1_000,
        alert_share=settings.alert_share,
        late_share=settings.late_share,
        interactive_s=settings.interactive_queue_s,
        recommendation_s=settings.recommendation_queue_s,
        alert_s=settings.alert_queue_s,
        late_s=settings.late_queue_s,
        burst_s=settings.burst_ms / 1_000,
        weights=settings.weights,
    )
