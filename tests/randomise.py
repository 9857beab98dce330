"""Change weights from their initial values, so that zeros and ones hide no mistake."""

import torch


def randomise(module: torch.nn.Module, seed: int, scale: float = 0.3) -> torch.nn.Module:
    """Add seeded noise to every floating-point weight and buffer of `module`, in place.

    Running variances stay positive.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.state_dict().items():
            if weight.is_floating_point():
                noise = torch.randn(weight.shape, generator=generator)
                if name.endswith("running_var"):
                    weight.mul_(torch.exp(scale * noise))
                else:
                    weight.add_(scale * noise)
    return module
