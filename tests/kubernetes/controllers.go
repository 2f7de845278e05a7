// Three controllers out of kube-controller-manager, in the version that is tested with: Jobs, the garbage collection of
// what an owner leaves, and that of pods whose node has gone.
package main

import (
	"context"
	"flag"
	"time"

	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/job"
	"k8s.io/kubernetes/pkg/controller/podgc"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "of the server")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Fatal(err)
	}
	config.QPS, config.Burst = 1000, 2000
	ctx := context.Background()
	client := kubernetes.NewForConfigOrDie(config)
	owners := metadata.NewForConfigOrDie(config)
	factory := informers.NewSharedInformerFactory(client, 0)
	both := informerfactory.NewInformerFactory(factory, metadatainformer.NewSharedInformerFactory(owners, 0))
	pods, nodes := factory.Core().V1().Pods(), factory.Core().V1().Nodes()
	jobs, err := job.NewController(ctx, client, pods, factory.Batch().V1().Jobs(), nil, nil)
	if err != nil {
		klog.Fatal(err)
	}
	orphans := podgc.NewPodGC(ctx, client, pods, nodes, 0)
	started := make(chan struct{})
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))
	collector, err := garbagecollector.NewGarbageCollector(
		ctx, client, owners, mapper, garbagecollector.DefaultIgnoredResources(), both, started)
	if err != nil {
		klog.Fatal(err)
	}
	both.Start(ctx.Done())
	close(started)
	go jobs.Run(ctx, 10)
	go orphans.Run(ctx)
	// resources that are defined later, as JobSets, are read at the next synchronisation
	go collector.Sync(ctx, client.Discovery(), 5*time.Second)
	collector.Run(ctx, 20, 30*time.Second)
}
