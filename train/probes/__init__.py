"""What a frozen encoder is good for: a linear probe, similarity and retrieval with its states as they are."""
