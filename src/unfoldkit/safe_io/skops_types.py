"""Types that a skops file may name: exactly those that fitted classifiers of scikit-learn and our own models write.

The tests fit every classifier of scikit-learn, and name what a new release writes and this list lacks. A type belongs
here only if it holds numbers and text and calls nothing that its file names. Functions never belong here, nor do
estimators that call one (``FunctionTransformer``, scorers).
"""

from __future__ import annotations

from collections.abc import Mapping

TRUSTED_TYPES: Mapping[str, frozenset[str]] = {
    "DTypeNode": frozenset(
        {
            "numpy.dtype",
        }
    ),
    "DictNode": frozenset(
        {
            "builtins.dict",
            "sklearn.utils._bunch.Bunch",
        }
    ),
    "JsonNode": frozenset(
        {
            "builtins.str",
        }
    ),
    "ListNode": frozenset(
        {
            "builtins.list",
        }
    ),
    "LossNode": frozenset(
        {
            "_loss.CyExponentialLoss",
            "_loss.CyHalfBinomialLoss",
            "_loss.CyHalfMultinomialLoss",
            "_loss.CyHalfSquaredError",
            "_loss.CyHuberLoss",
            "sklearn._loss._loss.CyExponentialLoss",
            "sklearn._loss._loss.CyHalfBinomialLoss",
            "sklearn._loss._loss.CyHalfMultinomialLoss",
            "sklearn._loss._loss.CyHalfSquaredError",
            "sklearn._loss._loss.CyHuberLoss",
            "sklearn.linear_model._sgd_fast.EpsilonInsensitive",
            "sklearn.linear_model._sgd_fast.Hinge",
            "sklearn.linear_model._sgd_fast.ModifiedHuber",
            "sklearn.linear_model._sgd_fast.SquaredEpsilonInsensitive",
            "sklearn.linear_model._sgd_fast.SquaredHinge",
        }
    ),
    "NdArrayNode": frozenset(
        {
            "numpy.bool",
            "numpy.bool_",
            "numpy.float32",
            "numpy.float64",
            "numpy.int32",
            "numpy.int64",
            "numpy.ndarray",
            "numpy.str_",
            "numpy.uint32",
            "numpy.uint64",
            "numpy.uint8",
        }
    ),
    "ObjectNode": frozenset(
        {
            "sklearn._loss.link.HalfLogitLink",
            "sklearn._loss.link.Interval",
            "sklearn._loss.link.LogitLink",
            "sklearn._loss.link.MultinomialLogit",
            "sklearn._loss.loss.ExponentialLoss",
            "sklearn._loss.loss.HalfBinomialLoss",
            "sklearn._loss.loss.HalfMultinomialLoss",
            "sklearn.calibration.CalibratedClassifierCV",
            "sklearn.calibration._CalibratedClassifier",
            "sklearn.calibration._SigmoidCalibration",
            "sklearn.calibration._TemperatureScaling",
            "sklearn.discriminant_analysis.LinearDiscriminantAnalysis",
            "sklearn.discriminant_analysis.QuadraticDiscriminantAnalysis",
            "sklearn.dummy.DummyClassifier",
            "sklearn.ensemble._bagging.BaggingClassifier",
            "sklearn.ensemble._forest.ExtraTreesClassifier",
            "sklearn.ensemble._forest.RandomForestClassifier",
            "sklearn.ensemble._gb.GradientBoostingClassifier",
            "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
            "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingClassifier",
            "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
            "sklearn.ensemble._stacking.StackingClassifier",
            "sklearn.ensemble._voting.VotingClassifier",
            "sklearn.ensemble._weight_boosting.AdaBoostClassifier",
            "sklearn.gaussian_process._gpc.GaussianProcessClassifier",
            "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
            "sklearn.gaussian_process.kernels.ConstantKernel",
            "sklearn.gaussian_process.kernels.Product",
            "sklearn.gaussian_process.kernels.RBF",
            "sklearn.impute._base.SimpleImputer",
            "sklearn.isotonic.IsotonicRegression",
            "sklearn.linear_model._logistic.LogisticRegression",
            "sklearn.linear_model._logistic.LogisticRegressionCV",
            "sklearn.linear_model._passive_aggressive.PassiveAggressiveClassifier",
            "sklearn.linear_model._perceptron.Perceptron",
            "sklearn.linear_model._ridge.RidgeClassifier",
            "sklearn.linear_model._ridge.RidgeClassifierCV",
            "sklearn.linear_model._stochastic_gradient.SGDClassifier",
            "sklearn.metrics._dist_metrics.BrayCurtisDistance64",
            "sklearn.metrics._dist_metrics.CanberraDistance64",
            "sklearn.metrics._dist_metrics.ChebyshevDistance64",
            "sklearn.metrics._dist_metrics.EuclideanDistance64",
            "sklearn.metrics._dist_metrics.HammingDistance64",
            "sklearn.metrics._dist_metrics.HaversineDistance64",
            "sklearn.metrics._dist_metrics.JaccardDistance64",
            "sklearn.metrics._dist_metrics.MahalanobisDistance64",
            "sklearn.metrics._dist_metrics.ManhattanDistance64",
            "sklearn.metrics._dist_metrics.MinkowskiDistance64",
            "sklearn.metrics._dist_metrics.SEuclideanDistance64",
            "sklearn.model_selection._classification_threshold.FixedThresholdClassifier",
            "sklearn.model_selection._classification_threshold.TunedThresholdClassifierCV",
            "sklearn.multiclass.OneVsOneClassifier",
            "sklearn.multiclass.OneVsRestClassifier",
            "sklearn.multiclass.OutputCodeClassifier",
            "sklearn.multiclass._ConstantPredictor",
            "sklearn.naive_bayes.BernoulliNB",
            "sklearn.naive_bayes.CategoricalNB",
            "sklearn.naive_bayes.ComplementNB",
            "sklearn.naive_bayes.GaussianNB",
            "sklearn.naive_bayes.MultinomialNB",
            "sklearn.neighbors._ball_tree.BallTree",
            "sklearn.neighbors._classification.KNeighborsClassifier",
            "sklearn.neighbors._classification.RadiusNeighborsClassifier",
            "sklearn.neighbors._kd_tree.KDTree",
            "sklearn.neighbors._nearest_centroid.NearestCentroid",
            "sklearn.neural_network._multilayer_perceptron.MLPClassifier",
            "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
            "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
            "sklearn.pipeline.Pipeline",
            "sklearn.preprocessing._data.StandardScaler",
            "sklearn.preprocessing._label.LabelBinarizer",
            "sklearn.preprocessing._label.LabelEncoder",
            "sklearn.semi_supervised._label_propagation.LabelPropagation",
            "sklearn.semi_supervised._label_propagation.LabelSpreading",
            "sklearn.semi_supervised._self_training.SelfTrainingClassifier",
            "sklearn.svm._classes.LinearSVC",
            "sklearn.svm._classes.NuSVC",
            "sklearn.svm._classes.SVC",
            "sklearn.tree._classes.DecisionTreeClassifier",
            "sklearn.tree._classes.DecisionTreeRegressor",
            "sklearn.tree._classes.ExtraTreeClassifier",
        }
    ),
    "RandomGeneratorNode": frozenset(
        {
            "numpy.random._generator.Generator",
        }
    ),
    "RandomStateNode": frozenset(
        {
            "numpy.random.mtrand.RandomState",
        }
    ),
    "TreeNode": frozenset(
        {
            "sklearn.tree._tree.Tree",
        }
    ),
    "TupleNode": frozenset(
        {
            "builtins.tuple",
        }
    ),
    "TypeNode": frozenset(
        {
            "builtins.bool",
            "builtins.float",
            "builtins.int",
            "builtins.str",
            "numpy.float32",
            "numpy.float64",
            "numpy.int32",
            "numpy.int64",
        }
    ),
}
"""Names of types by the node of the skops format that may build them."""
