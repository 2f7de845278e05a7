// One controller out of kube-controller-manager, in the version that is tested with: the one that frees what pods
// claimed that have ended. The others would find nothing to do on a cluster without machines.
package main

import (
	"context"
	"flag"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/resourceclaim"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "of the server")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Fatal(err)
	}
	config.QPS, config.Burst = 1000, 2000
	client := kubernetes.NewForConfigOrDie(config)
	factory := informers.NewSharedInformerFactory(client, 0)
	resources := factory.Resource().V1()
	controller, err := resourceclaim.NewController(
		klog.Background(), resourceclaim.Features{}, client, factory.Core().V1().Pods(),
		factory.Scheduling().V1alpha2().PodGroups(), resources.ResourceClaims(), resources.ResourceClaimTemplates())
	if err != nil {
		klog.Fatal(err)
	}
	ctx := context.Background()
	factory.Start(ctx.Done())
	controller.Run(ctx, 10)
}
