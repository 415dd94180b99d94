package client_test
import ("testing";"os";"fmt";"sync";"time";"github.com/google/uuid";"github.com/prototypster/pdvault/keys/client";"sync/atomic")
func TestZZ(t *testing.T){
 c, err := client.Dial(t.Context(), client.Config{Socket: os.Getenv("ZZ")}); if err!=nil{t.Fatal(err)}
 defer c.Close()
 var n atomic.Int64; var wg sync.WaitGroup; begin := time.Now()
 for range 512 { wg.Go(func(){ for n.Add(1) <= 1000000 { if time.Since(begin) > 150*time.Second {return}
  _,_,err := c.Seal(t.Context(), uuid.New(), true, []client.SealField{{Collection:"profile",Field:"email",Version:1,Plaintext:[]byte(`"a@b"`)}}); if err!=nil {t.Error(err);return}}})}
 wg.Wait(); fmt.Println("sealed", n.Load(), time.Since(begin))
}
