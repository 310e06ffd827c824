"""What cards are called elsewhere, and what is to be written. Names are compared by letters and digits, without case."""

PROBES = {
    "sharpness": "hessian eigenvalue eigenvalues lambda_max sharp max_eigenvalue top_eigenvalue eos eigs hessian_eigs",
    "spectrum": "esd density spectral hessian_spectrum eigenspectrum spectral_density hessian_density trace lanczos slq",
    "noise": "gradient_noise grad_noise noise_scale gns covariance grad_variance gradient_variance",
    "fisher": "fim fisher_information fisher_matrix empirical_fisher",
    "critical_point": "critical critical_points saddle saddles index stationary_point",
    "batch_sharpness": "batch_hessian gni stochastic_sharpness minibatch_sharpness",
    "batch_landscape": "landscape loss_landscape batch_minima minima",
    "linear_stability": "stability lyapunov",
    "escape": "escapes escape_rate escape_rates exit",
}
"""Probes, and what else they may be called."""

CARDS: dict[str, dict[str, str]] = {
    "optimizer": {
        "optimizer=sgd data.batch_size=full": "gd gradient_descent full_batch batch_gradient_descent vanilla",
        "optimizer=sgd optimizer.momentum=0.9": "momentum heavy_ball polyak msgd sgdm sgd_momentum",
        "optimizer=sgd optimizer.momentum=0.9 optimizer.nesterov=true": "nesterov nag sgd_nesterov",
        "optimizer=adamw": "adamw_torch adamw_hf adamw_torch_fused",
        "optimizer=rmsprop": "rms",
        "optimizer/noise=sgld": "sgld langevin",
        **{
            f"optimizer=own optimizer.path=torch.optim:{name}": name
            for name in ("Adamax", "Adagrad", "Adadelta", "NAdam", "RAdam", "Muon", "Adafactor", "ASGD", "Rprop")
        },
        "optimizer=own optimizer.path=PACKAGE:CLASS": "lion shampoo lamb lars soap sophia sam own custom mine sgd_sam kfac",
    },
    "model": {
        "model=mlp": "fc fcn fcnn dense dense_net feedforward feed_forward fnn ffn ann perceptron multilayer_perceptron "
        "fully_connected simple_dense_net simple_mlp",
        "model=mlp model.widths=[]": "linear logistic logistic_regression softmax_regression linear_model",
        **{f"model=resnet model.depth={depth}": f"resnet{depth}" for depth in (8, 20, 32, 44, 56, 18, 34)},
        "model=own model.path=FILE.py:CLASS": "cnn convnet conv lenet lenet5 simple_cnn small_cnn transformer gpt gpt2 "
        "bert vit vision_transformer rnn lstm gru mine custom nanogpt unet autoencoder",
    },
    "loss": {
        "loss=cross_entropy": "ce xent cross_ent crossentropyloss softmax softmax_cross_entropy nll nll_loss nllloss "
        "categorical_crossentropy sparse_categorical_crossentropy log_loss logistic f.cross_entropy cel",
        "loss=mse": "l2 l2_loss squared square squared_error mean_squared_error mse_loss quadratic sse ls regression",
        **{
            f"loss=own loss.path=torch.nn.functional:{name}": names
            for name, names in {
                "l1_loss": "l1 mae l1_loss mean_absolute_error",
                "huber_loss": "huber huber_loss",
                "smooth_l1_loss": "smooth_l1 smooth_l1_loss",
                "binary_cross_entropy_with_logits": "bce bce_with_logits bcewithlogitsloss bce_loss binary_crossentropy",
                "multi_margin_loss": "hinge hinge_loss margin multi_margin",
                "kl_div": "kl kl_div kldiv",
            }.items()
        },
        "loss=own loss.path=FILE.py:FUNCTION": "focal focal_loss custom mine",
    },
    "data": {
        "data=cifar10": "cifar cifar_10 cifar10_full",
        "data=cifar10_5k": "cifar5k cifar_5k cifar10_small cifar_small cifar10_subset",
        "data=digits": "sklearn sklearn_digits load_digits uci_digits optdigits toy",
        "data=image_folder data.root=DIR": "images folder image image_dir imagefolder pngs",
        "data=tensors data.file=FILE": "npz npy numpy tensor array arrays tensor_dataset pt safetensors mat csv",
        "data=own data.path=FILE.py:FUNCTION": "custom mine dataset torch_dataset map_dataset",
    },
    "schedule": {
        "schedule=constant": "none null off fixed const no flat",
        "schedule=cosine": "cos cosine_annealing cosine_annealing_lr cosine_lr cosine_decay cosineannealing",
        "schedule=step": "multistep multi_step step_lr multi_step_lr piecewise staircase decay step_decay",
        "schedule=warmup": "linear linear_warmup constant_with_warmup linear_lr",
    },
    "trainer": {
        "trainer.accelerator=gpu": "gpu cuda",
        "trainer.accelerator=cpu": "cpu",
        "trainer.accelerator=auto": "auto mps",
        "trainer=default": "ddp ddp_sim lightning none null base",
    },
    "probe": {"probe=[]": "none null off no false nothing"},
    "optimizer/noise": {
        "optimizer/noise=isotropic": "gaussian white normal langevin",
        "optimizer/noise=minibatch": "sgd batch mini_batch",
        "optimizer/noise=none": "null off no",
    },
    "optimizer/escape": {"optimizer/escape=none": "null off no"},
    "experiment": {
        "experiment=quickstart": "eos edge edge_of_stability default demo example test",
        "experiment=edge_of_stochastic_stability": "eoss stochastic_edge",
    },
    "hydra/launcher": {
        "launcher=joblib": "parallel loky process processes multiprocessing ray",
        "launcher=slurm": "submitit sbatch cluster",
    },
}
"""Cards, and what else they may be called, with what is to be written in their place."""

TORCHVISION = (
    "resnet50 resnet101 resnet152 resnext wide_resnet vgg densenet mobilenet alexnet squeezenet shufflenet mnasnet "
    "efficientnet convnext regnet"
)
"""How names of networks begin that model=torchvision knows."""

NO_DATA = (
    "mnist fashion_mnist fashionmnist kmnist emnist svhn cifar100 stl10 imagenet tiny_imagenet celeba food101 flowers"
)
"""Data sets that people ask for and that do not come along."""
