"""One file per meta-architecture of detectron2, named in `tf_d2.config.table`."""
