"""Small NNX layers. Every parameter names its logical axes; compute follows the dtype of the activations."""
