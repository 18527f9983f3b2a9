"""Advice before labels are bought: `advise` tries the rules on a pilot, `pool_facts` looks at the pool."""
