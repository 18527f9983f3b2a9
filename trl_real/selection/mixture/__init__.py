"""
Mixtures of strategies: every part takes its share of the budget, so that a rule that fails on a pool costs little.

    EmbeddingPairSelector(model, strategy="easy@centered+random")                     # equal shares
    EmbeddingPairSelector(model, strategy={"random": 0.25, "easy@centered": 0.75})
    EmbeddingPairSelector(model, strategy="auto")                                     # `MIXTURES`

Random parts draw first, from all rows, so that each row is drawn with a known probability. Then each part takes its
best rows among those left, each with the part's own pair of responses.

Start with `parts.parts_of`, which reads a mixture; `shares.take_shares` takes the rows, and `rows` joins the columns
of the scoring pass. This folder imports from data and from the rest of selection, and not from active or planning.
"""
