"""What predictions are worth against ground truth: metrics, intervals, errors, figures, reports, comparisons."""
