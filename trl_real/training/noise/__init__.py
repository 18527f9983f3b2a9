"""Labels that may be wrong: `label_confidence` reads soft labels, `window` finds doubtful pairs in training (SPA)."""
