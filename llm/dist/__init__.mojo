"""Many processes, on one machine or several: messages over MPI, and sums in an order that does not depend on how many there are."""
