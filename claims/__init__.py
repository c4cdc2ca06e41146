"""The claims of the survey, one experiment per row: `beholder claims NN`."""
