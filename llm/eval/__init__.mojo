"""How good a model is: loss over a sliding window, questions with several answers."""
