"""The public names: to add or to remove one is a decision, made here."""

import jaxunlearn
from jaxunlearn import baselines, experiments, training

PUBLIC = {
    jaxunlearn: """
        Dataset Model State Status TrainConfig Unlearner __version__
        audit data fit minimize models registry train_many
    """,
    training: "PruningConfig TrainConfig fit fit_pruned minimize train_many",
    baselines: """
        AmnesiacConfig FeatureUnlearningConfig FineTuneConfig GradientAscentConfig InfluenceConfig
        LogitMaskConfig NoopConfig RetrainConfig SISAConfig WoodFisherConfig feature_unlearning
        finetune gradient_ascent influence influence_woodfisher mask_logits retrain sisa_logits
    """,
    experiments: "CompareConfig FrontierConfig Records compare frontier read_records",
}


def test_public_names():
    for module, names in PUBLIC.items():
        assert set(module.__all__) == set(names.split()), module.__name__
        for name in module.__all__:
            assert getattr(module, name) is not None


def test_version():
    assert jaxunlearn.__version__[0].isdigit()
