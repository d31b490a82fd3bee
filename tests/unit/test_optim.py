import pytest
import torch

from trainer.config import OptimizerConfig
from trainer.optim import create_optimizer, set_learning_rate

CONFIG = OptimizerConfig(learning_rate=0.1, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.5)


def groups(values=(1.0, 2.0)):
    decayed, plain = (torch.nn.Parameter(torch.tensor([value])) for value in values)
    return [{"params": [decayed]}, {"params": [plain], "weight_decay": 0.0}]


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


def test_every_setting_reaches_the_optimizer():
    group = create_optimizer(CONFIG, parameter_groups=groups(), device_type="cpu").param_groups[0]
    found = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay", "fused")}
    assert found == {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.5, "fused": True}


def test_a_device_without_a_fused_kernel_gets_the_plain_one():
    assert create_optimizer(CONFIG, parameter_groups=groups(), device_type="xla").param_groups[0]["fused"] is False


def test_the_learning_rate_is_set_for_all_groups():
    optimizer = create_optimizer(CONFIG, parameter_groups=groups(), device_type="cpu")
    set_learning_rate(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]


@pytest.mark.parametrize("pieces", [2, 3, 7])
def test_a_partitioned_update_equals_the_whole_one(pieces):
    generator = torch.Generator().manual_seed(0)
    values, gradients = torch.randn(1001, generator=generator), torch.randn(3, 1001, generator=generator)

    def updated(parts):
        made = [torch.nn.Parameter(part.clone()) for part in values.chunk(parts)]
        optimizer = create_optimizer(CONFIG, parameter_groups=[{"params": made}], device_type="cpu")
        for gradient in gradients:
            for parameter, part in zip(made, gradient.chunk(parts), strict=True):
                parameter.grad = part.clone()
            optimizer.step()
        return torch.cat([parameter.detach() for parameter in made])

    torch.testing.assert_close(updated(pieces), updated(1), rtol=1e-6, atol=1e-7)
