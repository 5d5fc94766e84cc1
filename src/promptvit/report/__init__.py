"""Reports: one HTML file for a run or a study, complete in itself."""
