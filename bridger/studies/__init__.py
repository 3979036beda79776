"""Studies: settings of one recipe beside each other, over several seeds, at equal budget.

`study` reads what is asked, `conduct` makes the runs (`search`, `scheduling`, `perform`) and keeps
them (`store`), `results` computes rows, `report` writes them down.
"""
