"""The recipe's optimizer section: one model an optimiser, so that a knob which it would ignore is an error."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trainer.strict_model import PositiveInt, StrictModel

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


class _Optimizer(StrictModel):
    """What all have; weight decay is not applied to biases and norms.

    ema_decay: keep an exponential moving average of the weights, w̄ ← decay × w̄ + (1 − decay) × w after every
    update, beginning at the weights the run begins with. Validation, the best checkpoint and export then use w̄.
    """

    name: str
    learning_rate: Positive = 1e-4
    weight_decay: NonNegative = 0.01
    max_grad_norm: NonNegative = 1.0
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None


class _Adaptive(_Optimizer):
    """The two moments of Adam (Kingma and Ba 2015)."""

    beta1: Beta = 0.9
    beta2: Beta = 0.98
    eps: Positive = 1e-6


class AdamWConfig(_Adaptive):
    """AdamW (Loshchilov and Hutter 2019): weights decay beside the update."""

    name: Literal["adamw"] = "adamw"


class AdamConfig(_Adaptive):
    """Adam (Kingma and Ba 2015): weight decay is L2 regularisation, added to the gradient."""

    name: Literal["adam"] = "adam"


class SGDConfig(_Optimizer):
    """Gradient descent with heavy-ball or Nesterov momentum (Sutskever et al. 2013); weight decay is L2."""

    name: Literal["sgd"] = "sgd"
    learning_rate: Positive = 0.1
    weight_decay: NonNegative = 1e-4
    momentum: Beta = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_looks_ahead_along_a_momentum(self) -> SGDConfig:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("optimizer.nesterov=true needs a momentum; set optimizer.momentum, as in 0.9")
        return self


class LambConfig(_Adaptive):
    """LAMB (You et al. 2020, algorithm 2): each parameter's Adam update, scaled to the norm of the parameter."""

    name: Literal["lamb"] = "lamb"
    learning_rate: Positive = 2e-3
    beta2: Beta = 0.999


class StableAdamWConfig(_Adaptive):
    """StableAdamW (Wortsman et al. 2023): AdamW that slows down where a parameter's update outgrows its moments."""

    name: Literal["stable_adamw"] = "stable_adamw"


class MuonConfig(_Adaptive):
    """Muon (Jordan et al. 2024) for the matrices of the encoder's layers, AdamW for everything else.

    Muon's update is scaled to the size of AdamW's (Liu et al. 2025), so that both take one learning rate and decay.
    """

    name: Literal["muon"] = "muon"
    momentum: Beta = 0.95
    newton_schulz_steps: Annotated[PositiveInt, Field(lt=100)] = 5


def _adamw_unless_named(section: Any) -> Any:
    return {"name": "adamw", **section} if isinstance(section, dict) else section


OptimizerConfig = Annotated[
    AdamWConfig | AdamConfig | SGDConfig | LambConfig | StableAdamWConfig | MuonConfig,
    Field(discriminator="name"),
    BeforeValidator(_adamw_unless_named),
]
