// The parts of other modules that Knative's autoscaler.go mentions; none of them takes part in a decision.

package stubs

import (
	"errors"
	"time"
)

const (
	RPS         = "rps"
	Concurrency = "concurrency"
	DebugLevel  = 0
)

var ErrNoData = errors.New("no data")

type (
	Set              struct{}
	MeterProvider    any
	NamespacedName   struct{ Namespace, Name string }
	EndpointsCounter interface{ ReadyCount() (int, error) }
	SugaredLogger    struct{}
	Logger           struct{}
	Core             struct{}
)

type MetricClient interface {
	StableAndPanicConcurrency(NamespacedName, time.Time) (float64, float64, error)
	StableAndPanicRPS(NamespacedName, time.Time) (float64, float64, error)
}

func IsNotFound(error) bool { return false }
func Error(error) any       { return nil }

func (*SugaredLogger) Desugar() *Logger      { return &Logger{} }
func (*SugaredLogger) Errorw(string, ...any) {}
func (*SugaredLogger) Info(...any)           {}
func (*SugaredLogger) Debug(...any)          {}
func (*SugaredLogger) Infof(string, ...any)  {}
func (*Logger) Core() Core                   { return Core{} }
func (*Logger) Debug(string)                 {}
func (Core) Enabled(int) bool                { return false }
func Sdump(...any) string                    { return "" }
