// What Knative's autoscaler.go uses of its own package: the types of multiscaler.go and metrics.go, without the reconciler.

package scaling

import "time"

const tickInterval = 2 * time.Second

type DeciderSpec struct {
	MaxScaleUpRate, MaxScaleDownRate    float64
	ScalingMetric                       string
	TargetValue, TotalValue             float64
	TargetBurstCapacity, PanicThreshold float64
	StableWindow, ScaleDownDelay        time.Duration
	ActivationScale                     int32
	Reachable                           bool
}

type ScaleResult struct {
	DesiredPodCount     int32
	ExcessBurstCapacity int32
	ScaleValid          bool
}

var invalidSR = ScaleResult{}

type UniScaler interface{}

type scalingMetrics struct{}

func newMetrics(any, any, any) *scalingMetrics { return &scalingMetrics{} }

func (*scalingMetrics) SetPanic(bool)                                    {}
func (*scalingMetrics) OnDelete()                                        {}
func (*scalingMetrics) Record(float64, int64, float64, float64, float64) {}

type fixedCounter struct{ ready *int }

func (c fixedCounter) ReadyCount() (int, error) { return *c.ready, nil }
