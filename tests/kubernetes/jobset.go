// The controller of JobSets without its webhooks, whose defaults are written into the objects instead.
package main

import (
	"flag"

	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	jobset "sigs.k8s.io/jobset/api/jobset/v1alpha2"
	"sigs.k8s.io/jobset/pkg/controllers"
)

func main() {
	flag.Parse()
	ctrl.SetLogger(zap.New())
	log := ctrl.Log
	scheme := runtime.NewScheme()
	config := ctrl.GetConfigOrDie()
	config.QPS, config.Burst = 500, 1000
	ctx := ctrl.SetupSignalHandler()
	options := ctrl.Options{Scheme: scheme, Metrics: metricsserver.Options{BindAddress: "0"}}
	for _, err := range []error{clientgoscheme.AddToScheme(scheme), jobset.AddToScheme(scheme)} {
		must(err)
	}
	manager, err := ctrl.NewManager(config, options)
	must(err)
	must(controllers.SetupJobSetIndexes(ctx, manager.GetFieldIndexer()))
	must(controllers.SetupPodIndexes(ctx, manager.GetFieldIndexer()))
	must(controllers.NewJobSetReconciler(manager.GetClient(), scheme, manager.GetEventRecorderFor("jobset")).
		SetupWithManager(manager))
	log.Info("starting")
	must(manager.Start(ctx))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
