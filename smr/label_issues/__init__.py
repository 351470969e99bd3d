"""Label issues: scores, report, review page, corrections."""
