"""The visible loops: ``python -m train.pretrain CONFIG.yaml`` and ``python -m train.distill CONFIG.yaml``."""
