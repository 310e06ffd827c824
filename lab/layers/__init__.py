"""What the inputs and output gradients of a network's layers tell, without the gradients of single examples.

recorder      one forward pass whose known layers are recorded, by hooks
layer         what one layer tells: norms, inner products, weighted sums, random signs; affine, kinds: the kinds of layer
chunk         what all layers together tell of the gradients of some examples
completeness  whether the records explain the gradient
examples      the gradients of all examples of an objective; parameters without a record are formed
anatomy       a network of known layers only, each used once, and what lies between them (piecewise)
"""
