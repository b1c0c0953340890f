package testenv_test
import ("context";"testing";"time";amqp "github.com/rabbitmq/amqp091-go";"github.com/millrace-go/millrace/internal/testenv";"os";"path/filepath")
func TestZZ(t *testing.T) {
	s := testenv.OwnRabbitMQ(t)
	st := time.Now()
	lap := func(w string, a ...any) { t.Log(w, a, time.Since(st)); st = time.Now() }
	for i := range 3 {
		conn, err := amqp.Dial(s.URL); lap("dial", err)
		if err == nil {
		ch, _ := conn.Channel(); ch.Confirm(false)
		cl := conn.NotifyClose(make(chan *amqp.Error, 1)); cc := ch.NotifyClose(make(chan *amqp.Error, 1))
		_, err = ch.QueueDeclare("q", true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); lap("declare", err)
		c, err := ch.PublishWithDeferredConfirm("", "q", true, false, amqp.Publishing{DeliveryMode: 2, Body: []byte{byte(i)}})
		if err != nil { lap("pub", err) } else { x,cancel:=context.WithTimeout(t.Context(),8*time.Second); ok,e:=c.WaitContext(x); cancel(); lap("pub", ok, e) }
		select { case e := <-cl: lap("connclosed", e); default: }
		select { case e := <-cc: lap("chclosed", e); default: }
		conn.Close()
		}
		if i == 0 { s.Kill(); lap("kill"); s.Start(); lap("start") } else { s.Restart(); lap("restart") }
	}
	m, _ := filepath.Glob("/tmp/millrace-test-*/rabbitmq*/*.log")
	for _, f := range m { b, _ := os.ReadFile(f); t.Log(f, string(b)) }
}
