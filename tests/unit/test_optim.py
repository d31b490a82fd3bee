import math
import sys

import pytest
import pytorch_optimizer
import torch

from trainer.errors import UserError
from trainer.optim import create_optimizer, set_learning_rate
from trainer.optimizer_config import (
    AdamConfig,
    AdamWConfig,
    LambConfig,
    MuonConfig,
    SGDConfig,
    StableAdamWConfig,
)

SETTINGS = {"learning_rate": 0.1, "weight_decay": 0.5}
ADAM = {**SETTINGS, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3}
CONFIG = AdamWConfig(**ADAM)
BOTH = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.5}


def groups(values=(1.0, 2.0)):
    decayed, plain = (torch.nn.Parameter(torch.tensor([value])) for value in values)
    return [{"params": [decayed]}, {"params": [plain], "weight_decay": 0.0}]


def matrices():
    """A matrix that Muon may take, one that it may not, and a bias; drawn, so that every knob tells."""
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((4, 6), (5, 3), (7,))]


def with_muon(parameters):
    matrix, other, bias = parameters
    return [
        {"params": [matrix], "muon": True},
        {"params": [other]},
        {"params": [bias], "weight_decay": 0.0},
    ]


def without_muon(parameters):
    matrix, other, bias = parameters
    return [{"params": [matrix, other]}, {"params": [bias], "weight_decay": 0.0}]


def stepped(parameters, *optimizers, steps=4):
    generator = torch.Generator().manual_seed(4)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])


def trained(config):
    parameters = matrices()
    made = with_muon(parameters) if config.name == "muon" else without_muon(parameters)
    return stepped(parameters, create_optimizer(config, parameter_groups=made, device_type="cpu"))


def test_one_update_is_adamw_with_decay_only_where_it_belongs():
    made = groups()
    optimizer = create_optimizer(CONFIG, parameter_groups=made, device_type="cpu")
    for group in made:
        group["params"][0].grad = torch.tensor([0.5])
    optimizer.step()
    # The first update of Adam is rate × g ÷ (|g| + eps), whatever the betas are.
    update = 0.1 * 0.5 / (0.5 + 1e-3)
    assert made[0]["params"][0].item() == pytest.approx(1.0 * (1 - 0.1 * 0.5) - update, rel=1e-6)
    assert made[1]["params"][0].item() == pytest.approx(2.0 - update, rel=1e-6)


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (CONFIG, lambda made: torch.optim.AdamW(made, **BOTH, fused=True)),
        (AdamConfig(**ADAM), lambda made: torch.optim.Adam(made, **BOTH, fused=True)),
        (
            SGDConfig(**SETTINGS, momentum=0.7, nesterov=True),
            lambda made: torch.optim.SGD(made, lr=0.1, momentum=0.7, nesterov=True, weight_decay=0.5, fused=True),
        ),
        (StableAdamWConfig(**ADAM), lambda made: pytorch_optimizer.StableAdamW(made, **BOTH)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_an_optimizer_is_the_librarys_to_the_last_bit(config, reference):
    parameters = matrices()
    assert trained(config).equal(stepped(parameters, reference(without_muon(parameters))))


def test_muon_is_torchs_for_its_matrices_and_adamw_for_the_rest():
    matrix, other, bias = parameters = matrices()
    muon = torch.optim.Muon(
        [matrix], lr=0.1, weight_decay=0.5, momentum=0.8, ns_steps=3, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW([{"params": [other]}, {"params": [bias], "weight_decay": 0.0}], **BOTH, fused=True)
    config = MuonConfig(**ADAM, momentum=0.8, newton_schulz_steps=3)
    assert trained(config).equal(stepped(parameters, muon, adamw))


def test_lamb_is_algorithm_2_of_its_paper():
    # Without bias correction, the norm itself as scaling function, and decay inside the scaled update.
    parameters = matrices()
    moments = [(torch.zeros_like(parameter), torch.zeros_like(parameter)) for parameter in parameters]
    generator = torch.Generator().manual_seed(4)
    for _ in range(4):
        for parameter, (first, second), decay in zip(parameters, moments, (0.5, 0.5, 0.0), strict=True):
            gradient = torch.randn(parameter.shape, generator=generator)
            first.lerp_(gradient, 1 - 0.8)
            second.lerp_(gradient.square(), 1 - 0.9)
            update = first / (second.sqrt() + 1e-3) + decay * parameter.detach()
            parameter.data -= 0.1 * parameter.detach().norm() / update.norm() * update
    expected = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    torch.testing.assert_close(trained(LambConfig(**ADAM)), expected, rtol=2e-3, atol=1e-4)


def test_a_large_embedding_gets_lambs_whole_step():
    weight = torch.nn.Parameter(torch.full((100, 100), 0.5))
    optimizer = create_optimizer(
        LambConfig(learning_rate=0.1, weight_decay=0.0),
        parameter_groups=[{"params": [weight]}],
        device_type="cpu",
    )
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    # The step's norm is the rate times the weight's norm, 50.
    assert (weight.detach() - 0.5).norm().item() == pytest.approx(0.1 * 50, rel=1e-3)


KNOBS = [
    *[(AdamWConfig, knob) for knob in ("beta1", "beta2", "eps")],
    *[(AdamConfig, knob) for knob in ("beta1", "beta2", "eps")],
    *[(LambConfig, knob) for knob in ("beta1", "beta2", "eps")],
    *[(StableAdamWConfig, knob) for knob in ("beta1", "beta2", "eps")],
    *[(MuonConfig, knob) for knob in ("beta1", "beta2", "eps", "momentum", "newton_schulz_steps")],
    *[(SGDConfig, knob) for knob in ("momentum", "nesterov")],
    *[
        (kind, knob)
        for kind in (AdamWConfig, AdamConfig, LambConfig, StableAdamWConfig, MuonConfig, SGDConfig)
        for knob in ("learning_rate", "weight_decay")
    ],
]
CHANGED = {"learning_rate": 0.05, "weight_decay": 0.3, "eps": 0.1, "newton_schulz_steps": 2, "nesterov": True}


@pytest.mark.parametrize(("kind", "knob"), KNOBS)
def test_every_knob_changes_the_run(kind, knob):
    assert not trained(kind(**{knob: CHANGED.get(knob, 0.5)})).equal(trained(kind()))


def test_every_knob_of_every_optimizer_is_tested():
    shared = {"name", "max_grad_norm", "ema_decay"}  # the engine's, tested with it
    for kind in {kind for kind, _ in KNOBS}:
        assert {knob for of, knob in KNOBS if of is kind} == set(kind.model_fields) - shared


def test_a_device_without_a_fused_kernel_gets_the_plain_one():
    for config in (CONFIG, AdamConfig(), SGDConfig()):
        for device, fused in (("xla", False), ("cpu", True)):
            made = create_optimizer(config, parameter_groups=groups(), device_type=device)
            assert made.param_groups[0]["fused"] is fused


def test_the_learning_rate_is_set_for_all_groups():
    optimizer = create_optimizer(MuonConfig(), parameter_groups=with_muon(matrices()), device_type="cpu")
    set_learning_rate(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025] * 3
    assert trained_at_zero_rate(optimizer)


def trained_at_zero_rate(optimizer):
    """Whether rate 0 stops every part of an optimiser: both of Muon's read the rate that was set."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = torch.cat([parameter.detach().reshape(-1).clone() for parameter in parameters])
    set_learning_rate(optimizer, 0.0)
    return stepped(parameters, optimizer).equal(before)


@pytest.mark.parametrize("pieces", [2, 3, 7])
@pytest.mark.parametrize("config", [CONFIG, AdamConfig(**ADAM), SGDConfig(**SETTINGS)], ids=lambda value: value.name)
def test_a_partitioned_update_equals_the_whole_one(pieces, config):
    generator = torch.Generator().manual_seed(0)
    values, gradients = torch.randn(1001, generator=generator), torch.randn(3, 1001, generator=generator)

    def updated(parts):
        made = [torch.nn.Parameter(part.clone()) for part in values.chunk(parts)]
        optimizer = create_optimizer(config, parameter_groups=[{"params": made}], device_type="cpu")
        for gradient in gradients:
            for parameter, part in zip(made, gradient.chunk(parts), strict=True):
                parameter.grad = part.clone()
            optimizer.step()
        return torch.cat([parameter.detach() for parameter in made])

    torch.testing.assert_close(updated(pieces), updated(1), rtol=1e-6, atol=1e-7)


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    for config in (LambConfig(), StableAdamWConfig()):
        with pytest.raises(
            UserError, match=r"needs the package pytorch-optimizer; pip install 'bertline\[optimizers\]'"
        ):
            create_optimizer(config, parameter_groups=groups(), device_type="cpu")
    assert math.isfinite(trained(CONFIG).sum().item())


def test_a_group_may_scale_the_rate():
    one, other = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    groups = [{"params": [one], "rate_scale": 0.5}, {"params": [other]}]
    optimizer = create_optimizer(CONFIG, parameter_groups=groups, device_type="cpu")
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.25]
