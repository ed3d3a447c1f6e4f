from dataclasses import fields

import pytest
from pydantic import ValidationError

from penstock.infra.settings import RankerSettings, ShapingSettings
from penstock.ranker.shaping.depth import DepthBounds
from penstock.ranker.shaping.limits import Limits, limits_from


@pytest.mark.parametrize(("on_a_gpu", "depths"), [(True, (131, 250, 1_000)), (False, (16, 32, 64))])
def test_the_settings_defaults_are_the_limits_defaults(on_a_gpu: bool, depths: tuple[int, int, int]) -> None:
    assert limits_from(ShapingSettings(), on_a_gpu=on_a_gpu, lanes=1, usual_tokens=16_384.0) == Limits(
        depths=DepthBounds(*depths)
    )


def test_every_setting_reaches_the_limits() -> None:
    """Each, changed alone, changes them."""
    other = {
        "depths": (10, 20, 30),
        "weights": {"a": 2.0},
        "burst_ms": 600,
        "alert_share": 0.07,
        "late_share": 0.03,
        "delay_ms": 90,
        "batch_ms": 120,
        "standing_ms": 300,
        "interactive_queue_s": 2.0,
        "recommendation_queue_s": 20.0,
        "alert_queue_s": 60.0,
        "late_queue_s": 10.0,
    }
    assert set(other) == set(ShapingSettings.model_fields)
    usual = limits_from(ShapingSettings(), on_a_gpu=True, lanes=1, usual_tokens=1.0)
    for name, value in other.items():
        changed = limits_from(ShapingSettings.model_validate({name: value}), on_a_gpu=True, lanes=1, usual_tokens=1.0)
        assert sum(getattr(changed, one.name) != getattr(usual, one.name) for one in fields(Limits)) == 1, name


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"depths": (32, 16, 64)}, "expected the least, the start and the most, ascending"),
        ({"standing_ms": 100}, "expected more than delay_ms, which is 100"),
        ({"alert_share": 0.2}, "less than or equal to 0.1"),
        ({"late_share": 0.0}, "greater than 0"),
        ({"weights": {"a": 0}}, "greater than 0"),
        ({"alert_queue_s": 0}, "greater than 0"),
        ({"unheard": 1}, "Extra inputs are not permitted"),
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says) as refused:
        RankerSettings.model_validate({"shaping": wrong})
    assert "shaping" in str(refused.value)
