"""Where a trained model works and where it does not: one command, several conditions.

python -m speechbrain_peer.evaluation MODEL MANIFEST --output FOLDER
"""
