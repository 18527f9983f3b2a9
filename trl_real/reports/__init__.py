"""
Shared parts of the report pages: `figures` draws with matplotlib, `arm_styles` has the colours of a study, `render`
fills the Jinja templates in `templates/`. `model_card` completes the card that TRL writes for a model.

The pages themselves are made by `evaluation.report`, `labeling.people.label_page`, `rounds.report` and `study.report`.
A page is one HTML file with its figures inside; every value from data is escaped.

These modules import `trl_real.errors` and each other, and nothing else of the package.
"""
