"""
Votes of people: a web page or a Label Studio server collects them in a votes file.

Start with `votes.py`: the format of the file, and `VotesJudge`, which reads it. `page.py` serves the page; `desk.py`,
`queue.py` and `page_html.py` are its state and its HTML. `page_judge.py` makes the page a judge, `label_studio.py`
exchanges pairs and votes with a server, `report.py` summarizes a votes file, and
`label_page.py` writes the page for the person who pays.

May import the modules of `labeling/` and what they may import.
"""
