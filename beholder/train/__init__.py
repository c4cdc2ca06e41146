"""Training: the loop, objectives, heads on frozen features, and the verb `beholder.train`."""

from beholder.core.verbs import callable_as

callable_as(__name__, "beholder.train.verb:train")
