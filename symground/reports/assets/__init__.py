"""What pages share: their style, the head of a page, and the scripts for values, tables, tokens and heads."""
