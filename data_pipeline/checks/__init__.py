"""Looking at data sets that are there, ours and others: what is in them, and what is wrong with them."""
