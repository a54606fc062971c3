"""How far a measured figure may be off."""

from std.math import sqrt

comptime Z_95 = 1.959963984540054
"""Standard errors on either side of a mean within which 95% of a normal distribution lies."""


def wilson_interval(right: Int, examples: Int) -> Tuple[Float64, Float64]:
    """Returns the 95% confidence interval of a share: Wilson's score interval, good for small numbers and near 0 and 1.
    """
    comptime z = Z_95
    var n = Float64(examples)
    var p = Float64(right) / n
    var middle = p + z * z / (2 * n)
    var half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    var scale = 1 + z * z / n
    return (max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0))
