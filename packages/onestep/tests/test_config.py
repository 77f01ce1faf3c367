"""Settings: every field is checked when it is made, and survives JSON."""

import dataclasses
import json

import numpy as np
import pytest

import onestep_diffusion as osd
from onestep_diffusion import config


def test_settings_survive_json():
    teacher = osd.TeacherConfig(sigma_law="fixed:2.5", steps=7, net_kwargs={"hidden": 8})
    student = osd.StudentConfig(method="score", sigma_law="karras", divergence="alpha", alpha=1.0, alpha_end=0.0)
    for cfg in (teacher, student):
        again = type(cfg).from_dict(json.loads(json.dumps(cfg.to_dict())))
        assert again == cfg
    assert teacher.sigma_law == osd.Fixed(2.5)


def test_numpy_numbers_become_plain_ones_that_survive_json():
    cfg = osd.StudentConfig(
        steps=np.int64(7), lr=np.float32(0.5), sigma_law=osd.Fixed(np.float64(2.5)), logit_clip=None
    )
    assert json.loads(json.dumps(cfg.to_dict())) == cfg.to_dict()
    assert (type(cfg.steps), type(cfg.lr), type(cfg.sigma_law.value)) == (int, float, float)
    assert osd.StudentConfig.from_dict(cfg.to_dict()) == cfg


WRONG = {
    "steps": 0,
    "batch_size": 1,
    "lr": 0.0,
    "ratio_lr": -1.0,
    "warmup": -1,
    "aux_updates": 0,
    "sigma_init": 0.0,
    "few_steps": 3,
    "steps_per_call": 0,
    "micro_batch": 3,
    "ema_halflife_images": 0.0,
    "ema_ramp": -0.1,
    "logit_clip": 0.0,
    "ratio_width": 0.0,
    "ratio_r1": -1.0,
    "head_warmup": 1.0,
    "method": "gann",
    "divergence": "kl",
    "init": "teached",
    "net": "resnet",
    "omega": "cubed",
    "weight_norm": "all",
    "normalize": "l2",
    "ratio_loss": "hinge",
    "ratio_output": "raw",
    "ratio_init": "zeros",
    "precision": "f64",
    "stop_when": "tired",
    "sigma_law": "cauchy",
    "ratio_sigma_law": "fixed:-1",
    "alpha": 0.5,  # not for rkl
    "alpha_end": 0.0,
}


@pytest.mark.parametrize("name", WRONG)
def test_an_illegal_value_is_refused_with_the_legal_range(name):
    with pytest.raises(osd.ConfigError) as error:
        osd.StudentConfig(**{name: WRONG[name]})
    text = str(error.value)
    assert "\n" not in text
    assert str(WRONG[name]) in text
    assert name.removesuffix("_end") in text.replace(" ", "_")


@pytest.mark.parametrize("kind", [osd.TeacherConfig, osd.StudentConfig])
def test_every_field_refuses_a_value_of_another_kind(kind):
    for field in dataclasses.fields(kind):
        with pytest.raises(osd.ConfigError, match=field.name.removeprefix("ratio_")):
            kind(**{field.name: object()})
    for value in (float("nan"), float("inf"), "1e-3", None, True):
        with pytest.raises(osd.ConfigError, match="lr has to be a finite number"):
            kind(lr=value)
    with pytest.raises(osd.ConfigError, match=r"steps has to be an integer; got 10\.0"):
        kind(steps=10.0)


def test_settings_that_do_not_go_together_are_refused():
    cases = [
        ({"normalize": "dmd"}, "needs a teacher's score"),
        ({"ratio_init": "teacher_encoder"}, "needs ratio_width=1"),
        ({"method": "ict", "few_steps": 2}, "is not for method='ict'"),
        ({"method": "score", "stop_when": "indistinguishable"}, "needs a ratio"),
        ({"alpha_end": 0.0, "divergence": "js"}, "unless divergence=alpha"),
        ({"divergence": "alpha"}, "needs alpha"),
        ({"method": "sid", "divergence": "js"}, "is for methods ratio and score; sid has its own"),
        ({"method": "gan", "divergence": "fkl"}, "is for methods ratio and score; gan has its own"),
        ({"net_kwargs": {"width": 3}}, "settings among dim, hidden"),
    ]
    for settings, words in cases:
        with pytest.raises(osd.ConfigError, match=words):
            osd.StudentConfig(**settings)
    with pytest.raises(osd.ConfigError, match=r"there is no setting colour; there are net, net_kwargs"):
        osd.TeacherConfig.from_dict({"colour": 1})


def test_strategies_are_read_as_name_and_argument():
    assert config.parse_strategy("teacher") == ("teacher", "")
    assert config.parse_strategy("blocks:block0.*") == ("blocks", "block0.*")
    assert config.parse_strategy("warmup:50") == ("warmup", "50")
    for wrong in ("blocks", "freeze:", "teacher:x", "warmup:0", "warmup:many", ""):
        with pytest.raises(osd.ConfigError, match="init: "):
            config.parse_strategy(wrong)
