"""From a pretrained encoder to an application: classification, similarity, ner, qa, translation."""
