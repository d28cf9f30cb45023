"""Accuracy of stage_sc beside other tools for spatial domains, on the same sections with the same scores."""
