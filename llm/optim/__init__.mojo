"""How the gradient becomes a step."""
