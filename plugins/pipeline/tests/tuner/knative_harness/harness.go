// Reads one case a line, and prints the pods that Knative's autoscaler demands at each of its windows.

package scaling

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"kpa/stubs"
)

type window struct {
	Second        float64
	Stable, Panic float64
	Ready         int
}

type testCase struct {
	Target  float64
	Windows []window
}

type fixedMetrics struct{ now *window }

func (m fixedMetrics) StableAndPanicConcurrency(stubs.NamespacedName, time.Time) (float64, float64, error) {
	return m.now.Stable, m.now.Panic, nil
}

func (m fixedMetrics) StableAndPanicRPS(stubs.NamespacedName, time.Time) (float64, float64, error) {
	return m.now.Stable, m.now.Panic, nil
}

func Run() {
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 1<<24)
	for input.Scan() {
		var item testCase
		if err := json.Unmarshal(input.Bytes(), &item); err != nil {
			panic(err)
		}
		spec := &DeciderSpec{
			MaxScaleUpRate: 1000, MaxScaleDownRate: 2, ScalingMetric: "concurrency", TargetValue: item.Target,
			PanicThreshold: 2, StableWindow: time.Minute, Reachable: true,
		}
		now := item.Windows[0]
		scaler := newAutoscaler(stubs.Set{}, nil, "", "", fixedMetrics{&now}, fixedCounter{&now.Ready}, spec, nil)
		origin := time.Now()
		desired := []int32{}
		if !scaler.panicTime.IsZero() {
			scaler.panicTime = origin
		}
		for _, each := range item.Windows {
			now = each
			at := origin.Add(time.Duration(each.Second * float64(time.Second)))
			desired = append(desired, scaler.Scale(&stubs.SugaredLogger{}, at).DesiredPodCount)
		}
		line, _ := json.Marshal(desired)
		fmt.Println(string(line))
	}
}
