"""Many pictures through an exported model: shards on disk that can be continued after any interruption.

`model` answers one picture with one row; `inputs` lists pictures; `formats` writes and reads shards; `run` does what is
missing; `merge` makes one COCO results file. `tf_d2.beam` uses the same rows.
"""
