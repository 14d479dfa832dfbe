"""The training data stream: which row is read when, how documents pack into rows, and the batches made of them."""
