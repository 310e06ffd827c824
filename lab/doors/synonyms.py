"""What settings and cards are called elsewhere: in Lightning and its Hydra template, Keras, Hugging Face, torch.

Names are compared without case, `_` and `-`: learningRate is learning_rate. What is to be written is the name of a
setting, which takes the value as it is typed, or words with {} in the place of the value. The names that mean it follow,
with their group or, in whatever group they are typed, without.
"""

GROUPS = {
    "optimizer": "optim opt optimiser solver",
    "model": "net network arch architecture backbone nn",
    "data": "dataset datasets datamodule dm ds dataloader loader train_data train_dataset",
    "loss": "criterion loss_fn loss_function loss_func objective",
    "schedule": "scheduler lr_scheduler lr_schedule sched lr_scheduler_type",
    "trainer": "train training training_args train_args args hparams hyperparameters hp params config cfg fit run general",
    "probe": "probes measure measures measurement measurements",
    "compare": "comparison comparisons report plot",
    "experiment": "exp preset recipe config_name",
    "logger": "loggers logging report_to",
    "scaling": "lr_scaling",
}
"""Groups of cards, and what they are called elsewhere."""

SETTINGS = {
    "optimizer.lr": "lr learning_rate base_lr init_lr initial_lr step_size eta optimizer.alpha",
    "optimizer.weight_decay": "wd weight_decay l2 l2_reg l2_penalty decay lambda_reg optimizer.lambda",
    "optimizer.momentum": "momentum mom",
    "optimizer.eps": "eps epsilon adam_epsilon",
    "optimizer.betas=[{},0.999]": "beta1 beta_1 adam_beta1 b1",
    "optimizer.betas=[0.9,{}]": "beta2 beta_2 adam_beta2 b2",
    "data.batch_size": "bs batch_size batch mb minibatch minibatch_size mini_batch_size train_batch_size bsz "
    "per_device_train_batch_size per_gpu_train_batch_size batch_size_train global_batch_size",
    "data.examples": "examples n_train num_train train_size num_samples n_samples num_examples n_examples subset "
    "subset_size train_samples max_train_samples max_samples data_size dataset_size limit_train_batches overfit_batches",
    "data.classes": "classes num_classes n_classes nb_classes num_labels",
    "data.sampling": "sampling sampler",
    "data.random_labels": "random_labels label_noise label_corruption corrupt_prob noise_rate shuffle_labels",
    "data.subset_seed": "data_seed split_seed subset_seed",
    "data.augment": "augment augmentation augmentations data_augmentation aug data_aug",
    "data.standardise": "standardise standardize standardization normalise normalize normalization preprocessing",
    "data.image_size": "image_size img_size im_size resize input_size resolution",
    "epochs": "epochs epoch max_epochs num_epochs n_epochs nepochs nb_epoch nb_epochs num_train_epochs total_epochs",
    "steps": "steps max_steps num_steps n_steps iters max_iters n_iters num_iters iterations max_iterations "
    "num_iterations total_steps train_steps num_training_steps training_steps updates num_updates",
    "seed": "seed seed_everything random_seed manual_seed random_state rng rng_seed torch_seed",
    "model.widths=[{}]": "hidden hidden_size hidden_sizes hidden_dim hidden_dims hidden_layers hidden_layer_sizes "
    "hidden_units n_hidden num_hidden layer_sizes layer_widths width units d_model n_units lin1_size",
    "model.activation": "activation act act_fn activation_fn activation_function nonlinearity non_linearity",
    "model.init_scale": "init_scale init_std init_gain gain initial_scale init alpha_init",
    "model.norm": "norm normalization_layer norm_layer norm_type",
    "model.depth": "depth num_layers n_layers nlayers layers num_blocks n_layer",
    "loss.label_smoothing": "label_smoothing smoothing label_smoothing_factor",
    "trainer.clip_norm": "clip clip_norm grad_clip gradient_clip gradient_clip_val gradient_clipping max_grad_norm "
    "clip_grad clip_grad_norm clip_gradient clipnorm global_clipnorm grad_norm_clip clip_gradients max_norm",
    "trainer.clip_value": "clip_value clipvalue clip_grad_value grad_clip_value",
    "trainer.accelerator": "accelerator",
    "trainer.threads": "threads num_threads n_threads nthreads num_cpus n_cpus cpus torch_threads",
    "trainer.log_every": "log_every log_every_n_steps logging_steps log_interval log_freq log_steps print_freq "
    "print_every log_frequency",
    "trainer.evaluate_every": "evaluate_every eval_every eval_steps eval_interval eval_freq test_every val_every "
    "validate_every val_check_interval valid_every eval_frequency evaluation_interval",
    "trainer.checkpoint_every": "checkpoint_every ckpt_every save_every save_steps save_interval save_freq "
    "checkpoint_interval checkpoint_freq every_n_train_steps",
    "trainer.chunk_examples": "chunk_examples chunk_size chunk micro_batch_size micro_batch",
    "trainer.batch_norm": "batch_norm bn bn_mode",
    "trainer.keep": "keep keep_checkpoints",
    "trainer.stop": "stop stop_when stopping",
    "trainer.callbacks": "callbacks callback",
    "schedule.final": "min_lr_ratio min_lr_rate",
    "schedule.gamma": "gamma lr_gamma lr_decay decay_rate factor drop_factor",
    "schedule=step schedule.milestones=[{}]": "milestones lr_milestones lr_steps decay_steps schedule.step_size "
    "lr_step_size",
    "schedule=warmup schedule.steps={}": "warmup warmup_steps num_warmup_steps warmup_iters n_warmup warmup_updates "
    "warmup_ratio",
    "probe.budget": "budget probe_budget overhead",
    "name": "experiment_name exp_name run_name task_name experiment.name logger.name wandb.name logger.wandb.name run_id",
    "tags": "tag wandb.tags logger.tags logger.wandb.tags labels",
    "hydra.run.dir": "output_dir out_dir outdir save_dir savedir log_dir logdir default_root_dir work_dir workdir run_dir "
    "results_dir result_dir result_path save_path out output exp_dir paths.output_dir paths.log_dir paths.root_dir folder",
    "launcher=joblib launcher.n_jobs={}": "n_jobs jobs num_jobs parallel",
    "optimizer/noise": "noise gradient_noise",
    "optimizer/escape": "escape",
    "model.name": "model_name",
    "model.path": "model_path",
    "audit": "checks sanity_check",
}
"""Settings, and what they are called elsewhere."""

BY_VALUE: dict[str, dict[str, str]] = {
    "device use_cuda cuda gpu use_gpu no_cuda": {
        "cuda gpu cuda:0 true 0": "trainer.accelerator=gpu",
        "cpu false null none -1": "trainer.accelerator=cpu",
        "auto": "trainer.accelerator=auto",
    },
    "precision dtype torch_dtype default_dtype": {
        "float64 double 64 torch.float64 fp64 f64": "trainer.precision=64-true",
        "float32 float 32 torch.float32 fp32 f32": "trainer.precision=32-true",
        "bfloat16 bf16 bf16-mixed torch.bfloat16": "trainer.precision=bf16-mixed",
    },
    "fp64 double float64": {"true": "trainer.precision=64-true"},
    "bf16 bfloat16 amp use_amp": {"true": "trainer.precision=bf16-mixed"},
    "wandb use_wandb": {"true": "logger=[tensorboard,wandb]"},
    "mlflow use_mlflow": {"true": "logger=[tensorboard,mlflow]"},
    "tensorboard use_tensorboard": {"true": "logger=[tensorboard]"},
    "full_batch fullbatch gd": {"true": "data.batch_size=full"},
    "fast_dev_run dry_run smoke smoke_test debug_mode test_run": {"true": "debug=true"},
}
"""Names whose value decides which setting is meant: typed names, then values, each with what is to be written."""

ABSENT = {
    "the data lie in memory and no workers load them; leave it out": "num_workers workers n_workers pin_memory "
    "persistent_workers dataloader_num_workers dataloader_pin_memory prefetch_factor num_proc",
    "the batches of an epoch are always shuffled anew (data.sampling= says how they are drawn); leave it out": "shuffle "
    "shuffle_train data_shuffle",
    "the ragged last batch of an epoch is kept, so that every example is seen once; leave it out": "drop_last "
    "dataloader_drop_last",
    "what is missing is downloaded once; leave it out": "download",
    "data.augment=true crops and flips; leave it out": "transform transforms train_transform train_transforms",
    "a run is one process on one device; leave it out, or choose trainer.accelerator=gpu": "devices num_devices gpus "
    "num_gpus n_gpu n_gpus ngpu nodes num_nodes nnodes strategy distributed distributed_backend ddp world_size "
    "local_rank tpu_cores gpu_ids nproc_per_node use_distributed_sampler sync_batchnorm device_ids",
    "raise data.batch_size; trainer.chunk_examples= keeps the memory small": "accumulate_grad_batches "
    "gradient_accumulation_steps grad_accumulation grad_accum accumulation_steps grad_accum_steps",
    "trainer.clip_norm= clips the norm of the gradient, trainer.clip_value= its entries": "gradient_clip_algorithm",
    "evaluations are counted in updates; write e.g. trainer.evaluate_every=100": "check_val_every_n_epoch "
    "evaluation_strategy eval_strategy eval_every_epochs",
    "trainer.keep= says which checkpoints are kept, e.g. [100,500], every:200 or best": "save_top_k save_last "
    "save_total_limit save_best save_strategy load_best_model_at_end monitor enable_checkpointing checkpoint_callback",
    "trainer.stop= ends a run early, e.g. trainer.stop=[train/loss<1e-3]": "patience early_stopping early_stop "
    "early_stopping_patience min_delta target_loss loss_goal acc_goal max_time",
    "every run is seeded throughout and repeatable; leave it out": "deterministic benchmark cudnn_benchmark "
    "cudnn_deterministic reproducible full_determinism",
    "one of Lightning's switches that a run here decides for itself; leave it out": "profiler detect_anomaly compile "
    "torch_compile enable_progress_bar enable_model_summary num_sanity_val_steps min_epochs min_steps verbose verbosity "
    "limit_val_batches limit_test_batches limit_predict_batches reload_dataloaders_every_n_epochs inference_mode "
    "barebones plugins progress_bar_refresh_rate track_grad_norm auto_lr_find auto_scale_batch_size move_metrics_to_cpu "
    "use_compile extras ignore_warnings enforce_tags print_config quiet",
    "a run trains and evaluates; leave it out, or see python -m lab.measure for saved weights": "do_train do_eval "
    "do_predict train test evaluate mode phase stage",
    "no model here has dropout; model=own takes one of yours": "dropout dropout_rate p_dropout drop_rate dropout_p",
    "trainer.precision= is one of 32-true, 64-true, bf16-mixed, auto": "precision dtype torch_dtype fp16 half use_fp16",
    "trainer.accelerator= is one of cpu, gpu, auto": "device use_cuda cuda gpu use_gpu use_mps",
    "schedule=warmup counts updates, or a share of the run; write schedule=warmup schedule.steps=0.1": "warmup_epochs",
    "schedule=cosine goes over the whole run; schedule.final= is the share of the learning rate at its end": "t_max "
    "eta_min min_lr lr_min t_0 max_lr num_cycles",
    "it would change the loss that is measured and has no setting here": "mixup mixup_alpha cutmix cutmix_alpha cutout "
    "ema ema_decay swa sam_rho rho",
    "a run saves its last state by itself, and the same command goes on from there; leave it out": "auto_resume "
    "overwrite overwrite_output_dir",
    "debug=true is a short run that tries everything once": "fast_dev_run dry_run smoke smoke_test debug_mode test_run",
    "networks start untrained, drawn from seed=; from=RUN starts at a checkpoint of a run": "pretrained",
    "a loss is a mean over examples, all with the same weight; leave it out": "reduction class_weights class_weight "
    "loss.weight loss.weights pos_weight ignore_index",
    "data.batch_size=full is gradient descent on all examples": "full_batch fullbatch gd",
    "logger= says where numbers go besides metrics.jsonl, e.g. logger=[tensorboard,wandb]": "wandb use_wandb wandb_project "
    "wandb_entity wandb_mode logger.wandb logger.project mlflow use_mlflow tensorboard use_tensorboard project "
    "project_name entity logger.entity logger.mode logger.offline",
    "a list of axes stands in one command: -m optimizer.lr=0.1,0.2 seed=0,1": "hparams_search sweep sweeper grid "
    "trials n_trials num_trials search_space",
}
"""Answers to names of what there is none of here."""

PROBE_SETTINGS = {
    "every": "freq frequency interval period every_n every_n_steps log_every cadence step_interval n_steps measure_every",
    "k": "top topk top_k top_n num_eigenvalues n_eigenvalues num_eigs n_eigs neigs nev num_eigenvectors "
    "num_eigenthings eigenvalues num eigs count",
    "tol": "tolerance rtol eps epsilon precision accuracy err error atol",
    "rse": "tol tolerance rtol precision",
    "steps": "lanczos_steps num_steps n_steps iter krylov_dim num_lanczos lanczos_iterations",
    "max_matvecs": "max_iter max_iters iterations iters max_iterations num_iterations power_iter_steps max_steps "
    "maxiter n_iter matvecs num_matvecs hvps max_hvps steps lanczos_steps budget",
    "examples": "samples num_samples n_samples num_examples n_examples max_samples max_examples subset subset_size "
    "n num_data data batch_size dataset_size",
    "vectors": "num_vectors n_vectors n_v num_draws draws num_runs hutchinson_samples trace_samples probes num_probes",
    "bottom": "min negative smallest lambda_min num_bottom bottom_k",
    "layers": "layerwise layer_wise per_layer by_layer blocks",
    "parameters": "params layer filter only param_filter",
    "batches": "num_batches n_batches max_batches",
    "replicas": "walkers n_replicas num_replicas copies",
    "draws": "epochs num_draws n_draws",
}
"""Settings of probes, and what else they may be called; the first that the probe has is meant."""

SIMULATED = {
    "lr": "learning_rate eta step_size dt h",
    "walkers": "n_walkers num_walkers particles n_particles num_particles samples n_samples num_samples trials n_trials "
    "num_trials chains num_chains replicas",
    "replicas": "n_replicas num_replicas copies walkers samples trials",
    "steps": "n_steps num_steps max_steps iterations iters n_iter max_iters epochs",
    "max_steps": "steps n_steps num_steps",
    "batch_size": "bs batch minibatch_size",
    "batch_sizes": "batch_size bs",
    "examples": "n num_examples n_examples num_samples n_train train_size",
    "dimension": "dim d n_dim ndim dimensions",
    "dimensions": "dim dims d dimension",
    "temperature": "temp t kt beta_inv",
    "hidden": "width widths hidden_size hidden_dim units",
    "momentum": "mom beta",
    "seed": "seed_everything random_seed manual_seed random_state rng",
    "accelerator": "device cuda gpu",
    "threads": "num_threads n_threads",
}
"""Settings of the experiments of lab.simulate, and what else they may be called; the first that one has is meant."""

FITTING = {
    "model.widths=[{}] resnet": "model.width",
    "model.depth mlp": "model.widths=[32,32] lists the units of each hidden layer of an mlp; model=resnet has a depth",
}
"""What takes the place of a setting where the chosen card has another one for it: a setting, or a sentence."""

PLACES = (
    "data.path data.file data.dir data.root data.folder data.train data.npz path data_dir data_path data_root data_file "
    "dataset_path dataset_dir dataset_root train_dir train_path train_file root file npz filename data.data_dir"
)
"""Names of the place of the data, which is data.root, data.file or data.path: as the card has it."""

RESUMED = (
    "ckpt_path ckpt resume resume_from resume_from_checkpoint checkpoint checkpoint_path load load_from load_path "
    "load_checkpoint init_from restore restore_from weights weights_path start_from from_checkpoint from_run model.ckpt"
)
"""Names of the checkpoint to begin with."""
