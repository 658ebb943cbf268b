"""Slopes of a loss by central differences."""


def slope(loss, parameters, direction, size=1e-5):
    """How fast `loss()` grows as named parameters move along a direction."""
    losses = []
    for sign in (1, -1):
        for name, step in direction.items():
            parameters[name].data += sign * size * step
        losses.append(loss())
        for name, step in direction.items():
            parameters[name].data -= sign * size * step
    return (losses[0] - losses[1]) / (2 * size)
